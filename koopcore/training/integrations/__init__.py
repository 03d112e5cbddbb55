"""Attachments for trainers that own the loop: one module each, imported with its framework."""
