"""Methods in serving engines. An engine plans memory before it runs, so it takes methods with fixed budgets only."""
