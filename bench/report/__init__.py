"""`bench report`: what a store holds, as a folder of pages that opens from disk."""
