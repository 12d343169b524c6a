"""Lightning Fabric, work divided among processes, and random draws that processes share."""
