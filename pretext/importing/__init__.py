"""Published pretrained models -> `Opened`, as the pretext task that trained them."""
