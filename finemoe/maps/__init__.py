"""Expert maps and everything decided from them: geometry, store, search, selection (sections 4.1-4.4)."""
