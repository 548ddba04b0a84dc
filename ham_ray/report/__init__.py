"""From numbers to what people read: tables, pages, figures, model cards."""
