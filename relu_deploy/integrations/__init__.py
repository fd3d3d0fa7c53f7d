"""Adapters for other engines: Ray Data, Apache Beam, MLflow. Each is a module that imports its engine."""
