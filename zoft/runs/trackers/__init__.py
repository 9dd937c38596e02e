"""Copy metrics to wandb, TensorBoard or trackio."""
