"""Who judges answers: a classifier, a service, labels of tasks."""
