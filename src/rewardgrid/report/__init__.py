"""What it all says: tables, findings, figures, the comparison with the published study, and RESULTS.md."""
