"""The style sheet of report.html: light and dark, one column on a phone."""

LIGHT = {
    "text": "#1c1e21", "soft": "#5c6370", "line": "#dcdfe4", "page": "#ffffff",
    "main": "#1f6feb", "other": "#c2410c",
}  # fmt: skip
DARK = {
    "text": "#e6e8eb", "soft": "#9aa2ad", "line": "#343a43", "page": "#14171b",
    "main": "#6aa6ff", "other": "#fb923c",
}  # fmt: skip


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


STYLE = (
    f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}"
    """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 16px; }
h1 { margin: 8px 0 0; overflow-wrap: anywhere; }
h1 + p { margin: 4px 0 0; color: var(--soft); overflow-wrap: anywhere; }
h2 { margin: 32px 0 8px; font-size: 1.2em; }
h3 { margin: 12px 0 4px; font-size: 1em; }
table { border-collapse: collapse; width: 100%; max-width: 720px; }
td, th { padding: 4px 16px 4px 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
td:first-child { color: var(--soft); width: 45%; }
th { font-weight: 600; }
details { margin-top: 12px; }
summary { cursor: pointer; }
.charts { display: grid; gap: 24px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, max(340px, 40%)), 1fr)); }
figure { margin: 0; min-width: 0; max-width: 560px; }
figcaption { font-weight: 600; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
"""
)
