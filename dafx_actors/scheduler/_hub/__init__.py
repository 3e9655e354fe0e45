"""Task hubs: what is decided is carried out, in memory and in a change for the disk."""
