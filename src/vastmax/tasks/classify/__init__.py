"""Classification: one label out of V, from pixels or words."""
