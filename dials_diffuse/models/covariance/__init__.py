"""Any covariance of atoms or groups."""
