"""What a run tells people: intervals, comparisons, the leaderboard, figures and the report."""
