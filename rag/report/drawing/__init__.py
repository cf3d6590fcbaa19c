"""Figures as SVG: axes, line figures, scatter figures, and where labels find room."""
