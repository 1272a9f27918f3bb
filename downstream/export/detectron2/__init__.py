"""Everything that works with detectron2: its files, models, data and tools. Only this package imports it."""
