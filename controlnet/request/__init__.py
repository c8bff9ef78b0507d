"""What was asked: the inputs of a request, checked against predict()'s signature and against each other."""
