"""From program to draws."""
