"""From files to modules: model cards, strict loading, LoRA, fetching and conversion, for every family."""
