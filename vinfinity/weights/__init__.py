"""From files to modules: diffusers folders, strict loading, model cards."""
