"""What a run reports: intervals, comparisons, the leaderboard, figures and the report."""
