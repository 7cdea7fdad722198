"""The covariance of every pair of groups, fitted to a map."""
