"""How studies are measured, checked, reported and compared; what they ask is in lab/studies."""
