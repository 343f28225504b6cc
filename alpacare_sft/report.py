"""Pages for people."""


def save_training_report(path, record, log_history):
    pass


def save_data_report(path, report):
    pass
