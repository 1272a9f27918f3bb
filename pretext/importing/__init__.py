"""somebody's pretrained model -> Opened as the pretext task that taught it."""
