"""Run -> checkpoint: one engine for pretraining and fine-tuning."""
