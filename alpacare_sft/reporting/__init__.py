"""What people read: pages, figures, terminal views, the model card."""
