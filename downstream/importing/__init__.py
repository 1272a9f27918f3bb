"""somebody's detector -> Opened as a task with labels."""
