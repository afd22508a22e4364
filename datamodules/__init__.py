"""Where records come from: one file per dataset family."""
