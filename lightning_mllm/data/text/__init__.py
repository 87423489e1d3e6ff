"""From a sample to token ids: prompts, chat templates, segments and special tokens."""
