"""Configurations for detectron2's own tools: `.py` for lazyconfig_train_net.py, `.yaml` for train_net.py."""
