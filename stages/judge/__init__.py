"""How near generated clips are to a style: distances between sets of clips, by what no network was trained for."""
