"""A process that is killed again and again, and the proof that nothing which it was promised is lost."""
