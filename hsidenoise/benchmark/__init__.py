"""Tables of papers: methods x noise cases x scenes."""
