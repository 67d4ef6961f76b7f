"""Files that single tasks keep beside a merge: adapters, residuals and masks."""
