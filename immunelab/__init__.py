"""ImmuneLab: immunize a language model, attack it by harmful fine-tuning, and see what becomes of it."""
