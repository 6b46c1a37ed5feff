"""What it all says: tables, findings, figures and RESULTS.md."""
