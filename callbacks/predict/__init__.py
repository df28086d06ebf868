"""Writers of predictions: token stores and samples."""
