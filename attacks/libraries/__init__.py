"""Other libraries' attacks: a row of data each, over one adapter."""
