"""detectron2 -> ours and back: its files, its models, its data, its tools. Nothing else in the project imports it."""
