"""What works with which trainer and tracker."""
