"""First light: unseen pairs of the semi-synthetic Norman screen from controls and singles only, and two real screens."""
