"""Every rival in the same frame: same split, same metrics, tuned on the same pairs with the same budget."""
