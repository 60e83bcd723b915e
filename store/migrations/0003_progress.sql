-- How far the step that runs now is, in one sentence: shown while it is true, kept nowhere.
ALTER TABLE workspaces ADD COLUMN progress text CHECK (progress <> '');

CREATE FUNCTION notify_of_progress() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('taskrunner', NEW.task_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER notify_of_progress AFTER UPDATE OF progress ON workspaces FOR EACH ROW
    WHEN (NEW.progress IS DISTINCT FROM OLD.progress) EXECUTE FUNCTION notify_of_progress();
