"""Expert maps and what is computed from them: geometry, store, search, selection (sections 4.1-4.4)."""
