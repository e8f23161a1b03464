"""The protocol of one run, the provider behind it, and how Fable's model was made."""
