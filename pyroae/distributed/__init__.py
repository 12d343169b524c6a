"""Lightning Fabric, processes and draws that they share."""
