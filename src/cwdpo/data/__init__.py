"""From rows on disk to batches of prompts and answers, with every image checked and nothing truncated."""
