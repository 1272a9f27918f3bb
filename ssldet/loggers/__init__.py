"""numbers of a run -> programs that show them: one small protocol, and what is registered for it by name."""
