"""What every verb does around its work: open, plan, check, fetch, resume, record, publish."""
