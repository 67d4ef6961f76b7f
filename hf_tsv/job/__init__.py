"""The steps of a job around its actual work: open, plan, check, fetch, resume, record, publish."""
