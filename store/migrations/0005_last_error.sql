-- Why the activity that runs now is tried again: shown while the task is at its step, kept nowhere.
ALTER TABLE tasks ADD COLUMN last_error text CHECK (last_error <> '');

CREATE FUNCTION notify_of_last_error() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('taskrunner', NEW.id);
    RETURN NULL;
END
$$;
CREATE TRIGGER notify_of_last_error AFTER UPDATE OF last_error ON tasks FOR EACH ROW
    WHEN (NEW.last_error IS NOT NULL AND NEW.last_error IS DISTINCT FROM OLD.last_error)
    EXECUTE FUNCTION notify_of_last_error();
