"""Update rules as pure functions, each with the state that a resume needs."""
